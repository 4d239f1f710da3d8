"""The daemon: how a space is offered over HTTP."""
