"""A host's files below a folder of a test, made by the roles' own templates and expressions, and servers over them."""

import grp
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ansible_modules
import environments
import fleet_socket
import nginx_configuration
import processes
import tree
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from processes import Server, running, wait_for
from vassal_files import Vassals

Render = Callable[..., str]
Variables = Callable[[str], dict[str, Any]]
Json = dict[str, Any]

UWSGI = Path(sys.executable).parent / "uwsgi"
USER = pwd.getpwuid(os.geteuid()).pw_name
GROUP = grp.getgrgid(os.getegid()).gr_name
#: What Debian's own uwsgi_params hands on; that package need not be installed where the tests run.
UWSGI_PARAMS = {
    "QUERY_STRING": "$query_string",
    "REQUEST_METHOD": "$request_method",
    "CONTENT_TYPE": "$content_type",
    "CONTENT_LENGTH": "$content_length",
    "REQUEST_URI": "$request_uri",
    "PATH_INFO": "$document_uri",
    "DOCUMENT_ROOT": "$document_root",
    "SERVER_PROTOCOL": "$server_protocol",
    "REQUEST_SCHEME": "$scheme",
    "HTTPS": "$https if_not_empty",
    "REMOTE_ADDR": "$remote_addr",
    "REMOTE_PORT": "$remote_port",
    "SERVER_PORT": "$server_port",
    "SERVER_NAME": "$server_name",
}
CPU = {"kind": "cpu", "uuid": "", "memory_mib": 8192, "cores": 2, "cpus": [0, 1], "model": "CPU"}
DEVICES = [{"name": "one", **CPU}, {"name": "two", **CPU}]
HOST = {"memory_mib": 32768, "cores": 4, "driver_version": ""}


def trusted(value: Any) -> Any:
    """Let strings given by a test be templates, as strings of an inventory are."""
    if isinstance(value, Mapping):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


class Roles:
    """The roles' variables, expressions and templates, for Ansible's own Templar."""

    def __init__(self, variables: Variables, render: Render) -> None:
        self.variables = variables
        self.render = render

    def evaluate(self, role: str, text: str, **overrides: Any) -> Any:
        """The value that an expression of a role has, over the defaults of all roles and the role's own vars."""
        folder = str(tree.ROOT / "roles" / role)
        found = self.variables(role) | trusted(overrides) | {"role_path": folder, "ansible_search_path": [folder]}
        return Templar(loader=DataLoader(), variables=found).template(trust_as_template(text))


class Fleet:
    """A host below a folder: releases, devices, sockets and nginx."""

    def __init__(self, folder: Path, roles: Roles) -> None:
        self.folder = folder
        self.roles = roles
        self.devices_dir = folder / "devices"
        self.run_dir = folder / "run"
        self.log_dir = folder / "log"
        for path in (self.devices_dir, self.run_dir, self.log_dir, folder / "helpers"):
            path.mkdir()
        # The helper that starts vassals, as it is.
        self.wrapper = folder / "helpers" / "run-vassal"
        self.wrapper.write_text(roles.render("emperor", "usr/local/lib/fleet/run-vassal.j2"))
        self.wrapper.chmod(0o755)

    def local(self, text: str, *places: tuple[str, str]) -> str:
        """A rendered text with the places of a real host replaced; each of them must stand in it."""
        for there, here in places:
            assert there in text, f"{there!r} is not in the template any more"
            text = text.replace(there, here)
        return text

    # ---- release and vassals

    def release(self, name: str, app: Path, venv: Path) -> Json:
        """Lay a release out of an app's folder and a virtual environment."""
        folder = self.folder / "releases" / name
        folder.mkdir(parents=True)
        (folder / "app").symlink_to(app)
        (folder / "venv").symlink_to(venv)
        (folder / "models").mkdir()
        return {"id": name, "dir": str(folder), "environment": "tests"}

    def vassals(self, services: list[Json], release: Json, devices: list[Json] = DEVICES) -> list[Json]:
        """The vassals that the role services works out, with this folder's places in them."""
        found: list[Json] = self.roles.evaluate(
            "services",
            "{{ __services_vassals }}",
            services=services,
            fleet_release=release,
            fleet_devices=devices,
            fleet_host=HOST,
            emperor_user=USER,
            emperor_socket_group=GROUP,
        )
        # Through JSON, as Ansible hands them to the module.
        found = json.loads(json.dumps(found))
        for vassal in found:
            if vassal["stats"]:
                vassal["ini"] = self.local(vassal["ini"], ("/run/fleet/", f"{self.run_dir}/"))
            self.device(vassal["device"])
        return found

    def device(self, name: str) -> None:
        """Make a device's folders."""
        (self.devices_dir / name / "vassals").mkdir(parents=True, exist_ok=True)
        (self.run_dir / name).mkdir(exist_ok=True)

    def address(self, vassal: Json) -> str:
        """Where a vassal listens; with transport tcp in its first slot."""
        if vassal["transport"] == "tcp":
            return f"127.0.0.1:{vassal['ports'][0]}"
        return f"{self.run_dir}/{vassal['device']}/{vassal['name']}.sock"

    def folders(self) -> Json:
        """This host's places, as the module vassals takes them."""
        return {
            **{name: str(getattr(self, name)) for name in ("devices_dir", "run_dir", "log_dir")},
            "upstreams_dir": str(self.folder / "nginx" / "upstreams"),
            "measured_file": str(self.folder / "measured.json"),
        }

    def start(self, vassals: list[Json]) -> None:
        """Bring vassals up as a switch does, and wait until they serve."""
        host = Vassals({"vassals": vassals, "stop_seconds": 20, "group": GROUP, **self.folders()})
        host.start(host.vassals)

    def upstreams(self, vassals: list[Json]) -> list[Json]:
        """What the module gives to the role site."""
        return [{"service": one["service"], "device": one["device"], "address": self.address(one)} for one in vassals]

    def place(self, vassal: Json) -> Path:
        """Write a vassal's file, as the module does, where no emperor looks for it."""
        path = self.folder / f"{vassal['device']}-{vassal['name']}.ini"
        path.write_text(vassal["ini"].replace("@NAME@", vassal["name"]).replace("@ADDRESS@", self.address(vassal)))
        return path

    def stats(self, vassal: Json) -> Json:
        return fleet_socket.stats(fleet_socket.stats_path(str(self.run_dir), vassal["device"], vassal["name"]))

    def ask(self, vassal: Json, path: str, **more: Any) -> fleet_socket.Answer:
        """One request to a vassal, past nginx."""
        return fleet_socket.request(self.address(vassal), vassal["protocol"], path, **more)

    def accepting(self, vassal: Json) -> bool:
        """Whether all workers of a vassal accept requests."""
        try:
            workers = self.stats(vassal)["workers"]
        except fleet_socket.SocketError:
            return False
        return [one["accepting"] for one in workers if one["pid"]] == [1] * vassal["workers"]

    @contextmanager
    def vassal(self, vassal: Json, seconds: float = processes.PATIENCE_SECONDS) -> Iterator[Server]:
        """Run one vassal as an emperor would, and wait until all its workers accept; it ends as in a crash."""
        ini = self.place(vassal)
        log = self.log_dir / f"{vassal['device']}-{vassal['name']}.log"
        with running([self.wrapper, "--ini", ini.name], log, end=signal.SIGKILL, cwd=self.folder) as server:
            if vassal["stats"]:
                wait_for(lambda: server.process.poll() is not None or self.accepting(vassal), server.text, seconds)
            else:
                wait_for(lambda: server.process.poll() is not None or self.answers(vassal), server.text)
            assert server.process.poll() is None, server.text()
            yield server

    def answers(self, vassal: Json) -> bool:
        try:
            return self.ask(vassal, "/").status > 0
        except fleet_socket.SocketError:
            return False

    @contextmanager
    def emperor(self, device: str, end: int = signal.SIGKILL) -> Iterator[Server]:
        """Run the emperor of a device, as its unit does, and wait until it answers.

        Its orderly end takes three seconds, so that only tests of that end wait for it.
        """
        self.device(device)
        text = self.roles.render(
            "emperor",
            "etc/fleet/devices/emperor.ini.j2",
            device={"name": device, **CPU},
            __emperor_devices_dir=str(self.devices_dir),
            __emperor_helpers=str(self.folder / "helpers"),
        )
        ini = self.devices_dir / device / "emperor.ini"
        ini.write_text(self.local(text, ("/run/fleet/", f"{self.run_dir}/")))
        stats = self.run_dir / device / "emperor.stats"
        with running([UWSGI, "--ini", ini], self.log_dir / f"uwsgi-emperor@{device}.log", end=end) as server:
            wait_for(lambda: server.process.poll() is not None or stats.exists(), server.text)
            assert server.process.poll() is None, server.text()
            yield server

    # ---- nginx

    def sites(self, services: list[Json], upstreams: list[Json], **variables: Any) -> list[Json]:
        """The rendered sites, by the very expression of the role, with places for addresses."""
        devices = [{"name": name} for name in dict.fromkeys(one["device"] for one in upstreams)]
        given = {"inventory_hostname": "host1", "fleet_devices": devices, **variables}
        found: list[Json] = self.roles.evaluate("site", "{{ __site_rendered }}", services=services, **given)
        return json.loads(json.dumps(found))

    def configuration(
        self, services: list[Json], upstreams: list[Json], **variables: Any
    ) -> tuple[list[Json], list[Json]]:
        """Files and links of the whole configuration, with places for what is known on the host only."""
        sites = self.sites(services, upstreams, **variables)
        # Those of Debian's program lie in /var/lib/nginx, which is not there without its package.
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/nginx-temporary/{kind};\n"
            for kind in ("client_body", "proxy", "uwsgi", "fastcgi", "scgi")
        )
        extra = temporary + variables.get("nginx_extra_config", "")
        main = self.roles.render(
            "nginx", "etc/nginx/nginx.conf.j2", **{**variables, "nginx_extra_config": extra, "fleet_sites": sites}
        )
        main = self.local(
            main,
            ("user www-data;", f"user {USER};"),
            ("/run/nginx.pid", f"{self.folder}/nginx.pid"),
            ("/var/log/nginx/", f"{self.log_dir}/"),
        )
        layout = ansible_modules.load("filter", "site")
        files: list[Json] = layout.nginx_files(main, sites)
        links: list[Json] = layout.nginx_links(sites)
        return files, links

    def nginx_folder(self) -> Path:
        """The folder of the configuration with what Debian's package has in it."""
        root = self.folder / "nginx"
        if not root.exists():
            root.mkdir()
            (self.folder / "nginx-temporary").mkdir()
            (root / "mime.types").write_text("types {\n    text/html html;\n    application/json json;\n}\n")
            lines = [f"uwsgi_param {name} {value};\n" for name, value in UWSGI_PARAMS.items()]
            (root / "uwsgi_params").write_text("".join(lines))
        return root

    def lay(self, services: list[Json], upstreams: list[Json], **variables: Any) -> Path:
        """Write the whole configuration; gives its main file."""
        root = self.nginx_folder()
        for name in ("upstreams", "sites-available", "sites-enabled"):
            shutil.rmtree(root / name, ignore_errors=True)
        files, links = self.configuration(services, upstreams, **variables)
        addresses = {f"{one['service']}/{one['device']}": one["address"] for one in upstreams}
        files = [{**one, "content": nginx_configuration.fill(one["content"], addresses, (), {})} for one in files]
        for one in files:
            (root / one["path"]).parent.mkdir(exist_ok=True)
            (root / one["path"]).write_text(one["content"])
        for one in links:
            (root / one["path"]).parent.mkdir(exist_ok=True)
            (root / one["path"]).symlink_to(one["target"])
        return root / "nginx.conf"

    def nginx_command(self, *arguments: str) -> list[str | Path]:
        """nginx over the folder of this test."""
        root = self.folder / "nginx"
        return [environments.nginx(), "-e", "stderr", "-p", root, "-c", root / "nginx.conf", *arguments]

    @contextmanager
    def nginx(self, ports: Sequence[int]) -> Iterator[Server]:
        """Run nginx and wait until it listens."""
        command = self.nginx_command("-g", "daemon off;")
        with running(command, self.log_dir / "nginx.log", end=signal.SIGQUIT) as server:
            wait_for(lambda: server.process.poll() is not None or all(map(processes.listens, ports)), server.text)
            assert server.process.poll() is None, server.text()
            yield server

    def reload(self, services: list[Json], upstreams: list[Json], **variables: Any) -> None:
        """Have the running nginx use another configuration."""
        children = nginx_configuration.children
        master = int((self.folder / "nginx.pid").read_text())
        former = children(master)
        self.lay(services, upstreams, **variables)
        subprocess.run(self.nginx_command("-s", "reload"), check=True, capture_output=True)
        wait_for(lambda: children(master) - former and not children(master) & former, "the new workers")
