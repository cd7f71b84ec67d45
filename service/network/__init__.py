"""Connections, from the port to whole messages and back; beside them plain HTTP.

========== ================================================================================================
listening  the port, which all workers share, and how many connections there may be
accept     which worker takes a new connection
newcomers  clients that do not shake hands make room for others
handshakes connections from when they are accepted until they are greeted; a shutdown waits for them
opening    a connection's first request, until it is answered
messages   from a connection's bytes to its messages
frames     WebSocket frames, of which only pings, pongs and closes are the library's
guarded    who a client is and how much it requests; the close of one that exceeds a limit
connection one client: messages in, replies out in order
backend    what a connection needs of the service
http       answers to plain HTTP, and which requests are handshakes
page       the web page's files and headers
========== ================================================================================================
"""
