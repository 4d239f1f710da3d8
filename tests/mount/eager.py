"""vosfs and vosfsd with other limits than they ship with: ``eager.py MODULE.NAME=NUMBER... PROGRAM ARGUMENTS...``.

The delegation is given after two seconds of quiet.  A test that is to see it come and go a thousand times lowers that,
in the programs that it starts.
"""

import importlib
import sys


def main() -> None:
    arguments = sys.argv[1:]
    while "=" in arguments[0]:
        name, _, number = arguments.pop(0).partition("=")
        module, _, constant = name.rpartition(".")
        found = importlib.import_module(module)
        # A limit that is no longer there is a test that tests nothing.
        assert isinstance(getattr(found, constant), (int, float)), name
        setattr(found, constant, type(getattr(found, constant))(number))
    program = importlib.import_module({"vosfs": "vosfs.cli", "vosfsd": "server.daemon"}[arguments[0]])
    sys.argv = arguments
    program.main()


if __name__ == "__main__":
    main()
