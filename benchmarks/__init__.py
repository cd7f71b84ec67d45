"""The machine's limit, the service under load, and reports of both: `python -m benchmarks`.

What every measurement stands on:

=========== ===============================================================================
commands    throughput and latency on the command line, and what `python -m benchmarks` does alone
scenarios   the other commands, of one thing each
options     options and exit codes that commands share
target      the server under test, started and measured; `memory` is what it takes beside the generator
workload    what is sent
wire        a WebSocket client of little CPU; `http_wire` for peers that speak HTTP
load        many clients, in a closed or an open loop; `clients` are those, and the count of their replies
arrivals    when the requests of an open loop are due; `timer` keeps to it
percentiles latencies, summed up; `spread` does so with repeats
quiet       whether something else keeps the machine busy
machine     where the figures come from
=========== ===============================================================================

What is measured:

=========== ===============================================================================
limit       the bare loop, without a service
compare     the service's share of it
sweep       latency against throughput
slo         objectives that a load must reach
profile     CPU time by stage of the hot path; `stages` measures inside a worker
variants    the service with one part changed
persistence what storing costs
history     questions to a large table; `stored` makes it
idle        start, memory, memory per connection
misbehave   what others notice of a bad client
faces       faces in photos
gpu         batches on a GPU
replicas    several services behind HAProxy; `hosts` are the machines
costs       what a request costs, for `capacity`, which says what so many cameras need
peers/      the same job in other servers
=========== ===============================================================================

What becomes of it: `suite` runs the short set, `tables` and `plots` show results, `report` writes them.
"""
