"""The NBD protocol, pure: no sockets, clocks, event loops or TLS."""
