"""Where backups live: the content-addressed repository."""
