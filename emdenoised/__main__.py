"""`python -m emdenoised`: the command `emdenoised`."""

from daemon.commands.main import main

raise SystemExit(main())
