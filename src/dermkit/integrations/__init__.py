"""Other tools that take what dermkit wrote, each only when it is asked for: nothing imports them but the command."""
