"""The composition root: definitions, resources, automation and the `l2` command."""
