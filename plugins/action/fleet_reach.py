"""The first contact with a host: asks for its basic facts, and says what mends it when it does not answer."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase


def mends(host: str, address: str, login: str, error: str) -> list[str]:
    """What to do about a host that cannot be reached, the likeliest first."""
    look = f"look: ssh -v {login}"
    key = (
        "its host key is not known here, or has changed. Compare with what the host's console shows "
        f"(inventory/example/hosts.yml says how): ssh-keyscan -t ed25519 {address}"
    )
    let_in = "it does not let this user or key in: -u USER, or ansible_user and ansible_ssh_private_key_file in the inventory"
    found = [look]
    if "host key" in error.lower() or "host identification" in error.lower():
        found = [key, look]
    elif "permission denied" in error.lower():
        found = [let_in, look]
    return [*found, f"or go on without it: --limit '!{host}'"]


class ActionModule(ActionBase):
    """``fleet_reach: {say, required}``: like ``setup`` with the least facts; ``say`` stands in the message of a failure.

    With ``required: false`` a host that does not answer is no failure; the result then has ``reached: false``.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"say", "required"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the host."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        host = str(variables.get("inventory_hostname"))
        try:
            asked = self._execute_module("ansible.legacy.setup", {"gather_subset": ["!all"]}, task_vars=variables)
        except AnsibleConnectionFailure as error:
            address = str(self._play_context.remote_addr or host)
            user, port = self._play_context.remote_user, self._play_context.port
            login = (f"-p {port} " if port else "") + (f"{user}@" if user else "") + address
            lines = [f"{host} cannot be reached. {self._task.args.get('say', '')}".strip(), str(error).strip()]
            lines += [f"  {line}" for line in mends(host, address, login, str(error))]
            required = boolean(self._task.args.get("required", True))
            result.update(
                changed=False, reached=False, msg="\n".join(lines), **({"unreachable": True} if required else {})
            )
            return result
        result.update(reached=True)
        result.update(asked)
        return result
