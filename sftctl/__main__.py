"""`python -m sftctl` is `sftctl`."""

from sftctl.cli.app import main

raise SystemExit(main())
