"""The host's agent: event loop, registry, reconcile, control socket, metrics. It joins core and adapters."""
