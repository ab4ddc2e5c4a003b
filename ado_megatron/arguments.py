"""A parser whose complaints are UserErrors: one sentence, exit code 2, like every other bad input."""
from __future__ import annotations

import argparse

from ado_megatron.errors import UserError


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; `{self.prog} --help` lists the options")
