#!/usr/bin/python
"""Run a program of supervisor, with supervisor itself started when it is not."""

from __future__ import annotations

DOCUMENTATION = r"""
module: supervisor_program
short_description: Keep a program of supervisor running, as its configuration on disk says
description:
  - Starts C(supervisord) when it is not running, reads changed configuration and waits for the wanted state.
options:
  name: {description: Name of the program., type: str, required: true}
  state:
    description: C(started) and C(restarted) wait until it runs; C(absent) stops it and forgets it.
    type: str
    choices: [started, restarted, absent]
    default: started
  wait_seconds: {description: How long to wait for the state., type: int, default: 30}
"""

import re
import time

from ansible.module_utils.basic import AnsibleModule


class Supervisor:
    """supervisorctl, asked by one module run."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.program = module.get_bin_path("supervisorctl")

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Exit code and all output of ``supervisorctl ARGUMENTS``."""
        rc, out, err = self.module.run_command([self.program, *arguments])
        return rc, out + err

    def alive(self) -> bool:
        """Whether supervisord answers."""
        return self.ask("pid")[1].strip().isdigit()

    def state(self, name: str) -> str:
        """State of a program in supervisor's words, or ``ABSENT``."""
        match = re.search(rf"^{re.escape(name)}\s+([A-Z]+)", self.ask("status", name)[1], re.MULTILINE)
        return match[1] if match else "ABSENT"

    def wait(self, name: str, wanted: str, seconds: int) -> None:
        """Wait for a state; fails the module with the program's last output when it does not come."""
        deadline = time.monotonic() + seconds
        while (state := self.state(name)) != wanted:
            if time.monotonic() > deadline:
                _, tail = self.ask("tail", name)
                self.module.fail_json(
                    msg=f"{name} is {state}, not {wanted}, after {seconds} s. "
                    f"Look: supervisorctl tail {name}. Its last output:\n{tail[-2000:]}"
                )
            time.sleep(0.2)


def ensure_alive(module: AnsibleModule, supervisor: Supervisor) -> bool:
    """Start supervisord when it does not answer; says whether it had to."""
    if supervisor.alive():
        return False
    if module.check_mode:
        return True
    service = module.get_bin_path("service", required=True)
    rc, out, err = module.run_command([service, "supervisor", "start"])
    deadline = time.monotonic() + 15
    while not supervisor.alive():
        if time.monotonic() > deadline:
            module.fail_json(msg=f"supervisor did not start (exit code {rc}): {out}{err} Try: service supervisor start")
        time.sleep(0.2)
    return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "restarted", "absent"], "default": "started"},
            "wait_seconds": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    name, wanted, seconds = module.params["name"], module.params["state"], module.params["wait_seconds"]
    supervisor = Supervisor(module)
    if supervisor.program is None:
        if module.check_mode:
            module.exit_json(changed=wanted != "absent")
        module.fail_json(msg="supervisorctl is not installed. Mend: apt-get install supervisor")
    changed = ensure_alive(module, supervisor)
    if changed and module.check_mode:
        module.exit_json(changed=True)
    state = supervisor.state(name)
    if wanted == "absent":
        if state == "ABSENT" or module.check_mode:
            module.exit_json(changed=state != "ABSENT")
        supervisor.ask("stop", name)
        supervisor.ask("remove", name)
        module.exit_json(changed=True)
    if state != "RUNNING" or wanted == "restarted":
        changed = True
        if not module.check_mode:
            # `update` for one name loads its changed file and restarts it; without a change it does nothing.
            supervisor.ask("reread")
            supervisor.ask("update", name)
            if supervisor.state(name) == "RUNNING" and wanted == "restarted" and state == "RUNNING":
                supervisor.ask("restart", name)
            elif supervisor.state(name) not in {"RUNNING", "STARTING"}:
                supervisor.ask("start", name)
            supervisor.wait(name, "RUNNING", seconds)
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
