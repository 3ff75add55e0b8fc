"""Commands of their own module, each put into the `nedge` command by cli.py."""
