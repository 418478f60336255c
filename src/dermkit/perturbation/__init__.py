"""Images with an artefact put on them, and how a net's answers change."""
