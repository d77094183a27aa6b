"""The fixtures of tests/conftest.py: templates are rendered as Ansible does, and nginx is there to judge them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.errors import AnsibleUndefinedVariable

EMPEROR = "etc/fleet/devices/emperor.ini.j2"


def test_defaults_of_the_role_hold_and_can_be_replaced(render: Callable[..., str]) -> None:
    device = {"name": "gpu0"}
    text = render("emperor", EMPEROR, device=device)
    assert text.startswith("#\n# Ansible managed\n#\n# Role emperor")
    assert "emperor-curse-tolerance = 90\n" in text
    assert "emperor-curse-tolerance = 17\n" in render("emperor", EMPEROR, device=device, emperor_stop_seconds=17)


def test_what_is_given_may_be_a_template_itself(render: Callable[..., str]) -> None:
    text = render("emperor", EMPEROR, device={"name": "gpu0"}, emperor_stop_seconds="{{ 10 + 7 }}")
    assert "emperor-curse-tolerance = 17\n" in text


def test_an_undefined_variable_is_an_error(render: Callable[..., str]) -> None:
    with pytest.raises(AnsibleUndefinedVariable, match="device"):
        render("emperor", EMPEROR)


def test_nginx_judges_a_configuration(
    nginx_test: Callable[[Path], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    config = tmp_path / "nginx.conf"
    # Debian's nginx would make these in /var/lib/nginx, which is not there when its package is not installed.
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    config.write_text(
        f"pid nginx.pid; events {{}} http {{ access_log off; {temporary} server {{ listen 127.0.0.1:1; }} }}"
    )
    assert nginx_test(config).returncode == 0
    config.write_text("pid nginx.pid; events {} http { nonsense; }")
    broken = nginx_test(config)
    assert broken.returncode != 0
    assert 'unknown directive "nonsense"' in broken.stderr
