"""What several test modules share: real servers, and certificates for them."""
