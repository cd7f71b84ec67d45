"""Messages, without sockets: the wire contract.

======== ==========================
requests what clients may send
replies  what they get
======== ==========================
"""
