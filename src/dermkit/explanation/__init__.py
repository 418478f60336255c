"""Heat maps of what a net looked at, and checks of whether they mean anything."""
