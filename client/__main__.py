"""`python -m client` is `visionai`, for where scripts are not on the path."""

from client.cli import main

main()
