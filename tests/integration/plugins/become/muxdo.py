"""A become plugin that nobody knows: its prompt, its refusal and its command line are its own."""

from __future__ import annotations

import re

from ansible.plugins.become import BecomeBase

DOCUMENTATION = """
    name: muxdo
    short_description: for a test
    description: for a test
    options:
        become_user: {default: root, vars: [{name: ansible_become_user}]}
        become_exe: {default: muxdo, vars: [{name: ansible_become_exe}]}
        become_flags: {default: --as, vars: [{name: ansible_become_flags}]}
        become_pass: {vars: [{name: ansible_become_password}]}
        prompt_l10n: {default: ['Wer da\\?'], type: list, elements: string}
"""


class BecomeModule(BecomeBase):
    name = "muxdo"
    fail = ("Falsch!",)
    missing = ("Niemand",)

    def check_password_prompt(self, b_output: bytes) -> bool:
        return any(re.search(prompt.encode(), b_output) for prompt in self.get_option("prompt_l10n"))

    def build_become_command(self, cmd, shell):
        super().build_become_command(cmd, shell)
        if not cmd:
            return cmd
        self.prompt = True
        options = [self.get_option(name) for name in ("become_exe", "become_flags", "become_user")]
        return " ".join([*options, self._build_success_command(cmd, shell)])
