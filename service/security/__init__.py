"""Who may connect, who they are, and how much they may ask for.

=========== ==============================================================================
tokens      JSON Web Tokens, and the keys that they are checked with
api_keys    keys for users without a token issuer, stored hashed
identity    who a client has proved to be, and for how long
credentials takes either kind of credential, from a header or a message
tls         certificates, replaced without a restart
origins     which web pages may connect
addresses   who is at the other end, behind proxies too
admission   connections in total and per address, over all workers
rates       token buckets
guard       what one connection may ask for, request by request
gate        what is decided before a handshake is answered
files       noticing that a file was replaced
perimeter   a worker's gate, certificate and rules, from the settings and the files that these name
exposure    the warning for a service that anybody can reach
=========== ==============================================================================
"""
