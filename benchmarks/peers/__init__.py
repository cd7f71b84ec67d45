"""The same job in other servers, each in an environment of its own."""
