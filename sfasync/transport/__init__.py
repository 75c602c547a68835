"""NBD input and output: asyncio transports, TLS, connections, exports and local files."""
