"""Model cards, publishing on the Hub, the HTTP server, and the Space."""
