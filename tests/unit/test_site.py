"""Sites of nginx for every way to set the roles up; each whole configuration is judged by a real nginx."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stack import Fleet, Json

Check = Callable[[Path], subprocess.CompletedProcess[str]]
OCR: Json = {"name": "ocr", "route": "/v1/parse", "model": "inference.models.ocr:OcrModel"}
CATS: Json = {"name": "cats-2", "route": "/v1/cats", "model": "mine:Cats", "protocol": "http", "max_body_mib": 7}
ORIGINS = ["https://app.example.com", "http://localhost:3000"]


class Site:
    """A whole configuration and what nginx says of it."""

    def __init__(self, fleet: Fleet, check: Check, services: list[Json], devices: list[str], **variables: Any) -> None:
        upstreams = [
            {"service": service["name"], "device": device, "address": address(service, number, device)}
            for service in services
            for number, device in enumerate(devices)
        ]
        main = fleet.lay(services, upstreams, **variables)
        self.root = main.parent
        self.judged = check(main)

    def text(self, folder: str, name: str = "ocr") -> str:
        """A file without the space around its lines."""
        return "\n".join(line.strip() for line in (self.root / folder / f"{name}.conf").read_text().splitlines())

    def site(self, name: str = "ocr") -> str:
        return self.text("sites-enabled", name)

    def servers(self, name: str = "ocr") -> list[str]:
        """The upstreams' servers."""
        return re.findall(r"^server (.*);$", self.text("upstreams", name), re.MULTILINE)

    def location(self, path: str, name: str = "ocr") -> str:
        match = re.search(rf"^location = {re.escape(path)} \{{$(.*?)^\}}$", self.site(name), re.MULTILINE | re.DOTALL)
        assert match, f"no location {path}"
        return match[1]


def address(service: Json, number: int, device: str) -> str:
    if service.get("transport") == "tcp":
        return f"127.0.0.1:{9100 + number}"
    return f"/run/fleet/{device}/{service['name']}--r1.sock"


@pytest.fixture
def site(fleet: Fleet, nginx_test: Check) -> Callable[..., Site]:
    """Lay a configuration that nginx accepts."""

    def make(services: list[Json] | None = None, devices: list[str] | None = None, **variables: Any) -> Site:
        made = Site(fleet, nginx_test, services or [OCR], devices or ["gpu0", "gpu1"], **variables)
        assert made.judged.returncode == 0, made.judged.stderr
        # That of the user is meant for whoever runs nginx without being root.
        warnings = [line for line in made.judged.stderr.splitlines() if "[warn]" in line]
        assert [line for line in warnings if '"user" directive makes sense only' not in line] == []
        return made

    return make


def test_the_defaults(site: Callable[..., Site]) -> None:
    made = site()
    text = made.site()
    assert "listen 0.0.0.0:8100;\nlisten [::]:8100 ipv6only=on;\nserver_name _;\n" in text
    assert "client_max_body_size 100m;" in text
    location = made.location("/v1/parse")
    assert "client_max_body_size 100m;" in location
    assert "uwsgi_pass fleet_ocr;" in location
    assert "uwsgi_read_timeout 65s;" in location
    for path in ("/healthz", "/readyz", "/version", "/openapi.json", "/openapi/ocr.json"):
        assert "uwsgi_pass fleet_ocr;" in made.location(path)
    assert "$cors" not in text
    assert "Access-Control" not in text
    assert "real_ip" not in text
    settings = "weight=1 max_fails=3 fail_timeout=5s"
    assert made.servers() == [f"unix:/run/fleet/gpu{number}/ocr--r1.sock {settings}" for number in range(2)]


def test_only_our_own_sites_are_included(site: Callable[..., Site]) -> None:
    made = site([OCR, {**CATS, "port": 8200}])
    includes = re.findall(r"^\s*include (.*);$", (made.root / "nginx.conf").read_text(), re.MULTILINE)
    assert includes == [
        "mime.types",
        *("upstreams/ocr.conf", "sites-enabled/ocr.conf"),
        *("upstreams/cats-2.conf", "sites-enabled/cats-2.conf"),
    ]


@pytest.mark.parametrize("balance", ["least_conn", "round_robin", "ip_hash"])
@pytest.mark.parametrize("devices", [["gpu0"], ["gpu0", "gpu1"], [f"gpu{number}" for number in range(16)]], ids=len)
@pytest.mark.parametrize("protocol", ["uwsgi", "http"])
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_every_balance_number_of_devices_protocol_and_transport(
    site: Callable[..., Site], balance: str, devices: list[str], protocol: str, transport: str
) -> None:
    made = site([{**OCR, "protocol": protocol, "transport": transport}], devices, site_balance=balance)
    upstream = made.text("upstreams")
    assert (f"{balance};" in upstream) == (len(devices) > 1 and balance != "round_robin")
    assert not {"least_conn;", "ip_hash;"} - {f"{balance};"} & set(upstream.splitlines())
    first = "unix:/run/fleet/gpu0/ocr--r1.sock" if transport == "unix" else "127.0.0.1:9100"
    assert len(made.servers()) == len(devices)
    assert made.servers()[0].split()[0] == first
    passed = {"uwsgi": "uwsgi_pass fleet_ocr;", "http": "proxy_pass http://fleet_ocr;"}
    assert passed[protocol] in made.location("/v1/parse")
    assert passed["uwsgi" if protocol == "http" else "http"] not in made.site()


def test_weights(site: Callable[..., Site]) -> None:
    made = site(devices=["gpu0", "gpu1", "gpu2"], site_device_weights={"gpu0": 3, "gpu2": 2})
    assert [re.findall(r"weight=(\d+)", server) for server in made.servers()] == [["3"], ["1"], ["2"]]


def test_failures(site: Callable[..., Site]) -> None:
    made = site(site_max_fails=0, site_fail_seconds=30, site_connect_seconds=4, site_retry_sent_requests=True)
    assert all(server.endswith("max_fails=0 fail_timeout=30s") for server in made.servers())
    location = made.location("/v1/parse")
    assert "uwsgi_connect_timeout 4s;" in location
    assert "uwsgi_next_upstream error timeout non_idempotent;" in location


def test_the_http_protocol_hands_on_who_asks(site: Callable[..., Site]) -> None:
    location = site([{**OCR, "protocol": "http", "timeout_seconds": 20}]).location("/v1/parse")
    for header in (
        "X-Real-IP $remote_addr",
        "X-Forwarded-For $proxy_add_x_forwarded_for",
        "X-Forwarded-Proto $scheme",
        "X-Request-ID $fleet_request_id",
        "Host $host",
    ):
        assert f"proxy_set_header {header};" in location
    assert "proxy_read_timeout 25s;" in location


@pytest.mark.parametrize("origins", [["*"], ORIGINS, ["*", *ORIGINS]], ids=" ".join)
def test_cors(site: Callable[..., Site], origins: list[str]) -> None:
    made = site([OCR, {**CATS, "port": 8200}], site_cors_origins=origins, site_cors_headers=["Authorization"])
    for name, variable, route in (("ocr", "ocr", "/v1/parse"), ("cats-2", "cats_2", "/v1/cats")):
        text = made.site(name)
        assert f"add_header Access-Control-Allow-Origin $cors_origin_{variable} always;" in text
        assert "Access-Control-Allow-Credentials" not in text
        assert ("add_header Vary Origin always;" in text) == ("*" not in origins)
        assert "if ($request_method = OPTIONS)" in made.location(route, name)
        assert "OPTIONS" not in made.location("/healthz", name)


def test_cors_with_credentials(site: Callable[..., Site]) -> None:
    text = site(site_cors_origins=ORIGINS, site_cors_credentials=True).site()
    assert "add_header Access-Control-Allow-Credentials $cors_credentials_ocr always;" in text


def test_names_proxies_and_further_directives(site: Callable[..., Site]) -> None:
    made = site(
        site_server_name="ocr.example.com *.ocr.example.com",
        site_trusted_proxies=["10.0.0.0/8", "fd00::/8"],
        site_extra_config="limit_rate 5m;\nerror_log off;",
        nginx_extra_config="map $uri $mine {\n    default 1;\n}\n",
        site_listen_addresses=["127.0.0.1"],
    )
    text = made.site()
    assert "listen 127.0.0.1:8100;\nserver_name ocr.example.com *.ocr.example.com;\n" in text
    assert "set_real_ip_from 10.0.0.0/8;\nset_real_ip_from fd00::/8;\nreal_ip_header X-Forwarded-For;\n" in text
    assert "\nlimit_rate 5m;\nerror_log off;\n" in text
    assert re.search(r"^ {4}map \$uri \$mine \{\n {8}default 1;\n {4}\}$", (made.root / "nginx.conf").read_text(), re.M)


def test_two_services_on_one_port_are_one_site(site: Callable[..., Site]) -> None:
    made = site([{**OCR, "max_body_mib": 5}, CATS])
    assert sorted(path.name for path in (made.root / "sites-enabled").iterdir()) == ["ocr.conf"]
    text = made.site()
    assert text.count("\nserver {\n") == 1
    assert text.count("listen 0.0.0.0:8100;") == 1
    # What is refused before a location is found, the largest of them takes.
    assert text.index("client_max_body_size 7m;") < text.index("location = ")
    assert "client_max_body_size 5m;" in made.location("/v1/parse")
    assert "client_max_body_size 7m;" in made.location("/v1/cats")
    assert "uwsgi_pass fleet_ocr;" in made.location("/v1/parse")
    assert "proxy_pass http://fleet_cats-2;" in made.location("/v1/cats")
    assert text.count("location = /readyz {") == 1
    assert len(made.servers()) == 4


def test_each_service_is_described_where_it_is(site: Callable[..., Site]) -> None:
    tell = {"name": "tell", "route": "/tell", "wsgi_file": "app/tell.py", "ready_path": ""}
    made = site([tell, OCR, CATS])
    for path, passed in (
        ("/openapi.json", "uwsgi_pass fleet_ocr;"),
        ("/openapi/ocr.json", "uwsgi_pass fleet_ocr;"),
        ("/openapi/cats-2.json", "proxy_pass http://fleet_cats-2;"),
    ):
        assert passed in made.location(path, "tell")
        assert ("rewrite ^ /openapi.json break;" in made.location(path, "tell")) == (path != "/openapi.json")
    assert "/openapi/tell.json" not in made.site("tell")
    assert "location = /docs {" in made.site("tell")
    assert "location = /docs" not in site([tell]).site("tell")


def test_two_services_on_two_ports_are_two_sites(site: Callable[..., Site]) -> None:
    made = site([OCR, {**CATS, "port": 8200, "route": "/v1/parse"}], site_cors_origins=ORIGINS)
    assert sorted(path.name for path in (made.root / "sites-enabled").iterdir()) == ["cats-2.conf", "ocr.conf"]
    assert "listen 0.0.0.0:8200;" in made.site("cats-2")
    assert "proxy_pass http://fleet_cats-2;" in made.location("/readyz", "cats-2")
    assert len(made.servers()) == len(made.servers("cats-2")) == 2


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"site_extra_config": "no_such_directive on;"}, 'unknown directive "no_such_directive"'),
        ({"site_extra_config": "limit_rate 5m"}, "limit_rate"),
        ({"nginx_extra_config": "}"}, '"upstream" directive is not allowed here'),
        ({"site_trusted_proxies": ["not-an-address"]}, "not-an-address"),
        ({"site_device_weights": {"gpu0": 0}}, 'invalid parameter "weight=0"'),
    ],
)
def test_nginx_refuses_what_is_broken(fleet: Fleet, nginx_test: Check, variables: Json, said: str) -> None:
    broken = Site(fleet, nginx_test, [OCR], ["gpu0", "gpu1"], **variables)
    assert broken.judged.returncode != 0
    assert "[emerg]" in broken.judged.stderr
    assert said in broken.judged.stderr


def test_every_problem_has_its_answer(site: Callable[..., Site]) -> None:
    """For each error that nginx makes itself there is a body, and all bodies are JSON once nginx has filled them in."""
    text = site().site()
    pages = re.findall(r"^error_page (\d+)(?: =\d+)? /\.problem/(\d+);$", text, re.MULTILINE)
    found = re.findall(r"^return (\d+) '(\{\"type\".*\})';$", text, re.MULTILINE)
    bodies = [body for _, body in found]
    assert {code for _, code in pages} == {code for code, _ in found}
    assert {code for code, _ in pages} >= {"400", "404", "405", "413", "502", "503", "504"}
    assert ("502", "503") in pages
    assert text.count("default_type application/problem+json;") == len(bodies)
    assert all("'" not in body and body.count("$") == 1 for body in bodies)


# ---- nginx's unit


def test_a_stop_gives_requests_their_time(fleet: Fleet) -> None:
    """The workers end first, then the program that stops them, then systemd's patience."""
    text = fleet.roles.render("nginx", "etc/systemd/system/nginx.service.d/fleet.conf.j2", nginx_shutdown_seconds=125)
    stops = [line for line in text.splitlines() if line.startswith("ExecStop=")]
    assert stops[0] == "ExecStop=", "Debian's own gives them five seconds"
    assert len(stops) == 2
    assert "--retry QUIT/130 " in stops[1]
    assert "TimeoutStopSec=135" in text.splitlines()


def test_what_takes_a_stop_and_a_start_stands_in_a_file_of_its_own(fleet: Fleet) -> None:
    """For everything else a new nginx takes over from the running one, where it can."""
    unit = fleet.roles.evaluate("nginx", "{{ __nginx_unit }}", __emperor_manager="systemd")
    folder = "/etc/systemd/system/nginx.service.d"
    assert unit["files"] == [f"{folder}/fleet.conf", f"{folder}/fleet-sandbox.conf"]
    assert unit["in_place"] == [f"{folder}/fleet.conf"]
    assert "in_place" not in fleet.roles.evaluate("nginx", "{{ __nginx_unit }}", __emperor_manager="supervisor")
    sandbox = fleet.roles.render("nginx", "etc/systemd/system/nginx.service.d/fleet-sandbox.conf.j2")
    assert "ProtectSystem=full" in sandbox
    rest = fleet.roles.render("nginx", "etc/systemd/system/nginx.service.d/fleet.conf.j2")
    assert not [line for line in rest.splitlines() if line.startswith(("Protect", "Private", "Restrict", "Limit"))]
