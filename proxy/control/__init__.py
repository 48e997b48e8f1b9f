"""How the outside talks to a running daemon: a UNIX socket with JSON lines, and systemd."""
