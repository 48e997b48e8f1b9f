"""The sans-IO stack that carries all connections, and the runtime that gives it a clock."""
