"""What `sfasync bench` does: whole processes against the best other tools, in alternating order, on data of its own."""
