"""Processes: the supervisor, its workers, and what they share.

============ ==============================================================================================
supervisor   the workers' lives: started, watched, replaced, told to stop
workers      how one worker is started, and what is known of it
worker       what one process is: model, store, event loop
announcement the line that says what is served, and in what workers differ
reload       requesting a reload, and its result; the supervisor does it
hangup       SIGHUP: a reload, or the end of a terminal; during the start it waits
signals      signals that wait: while libraries load, while a worker is forked; what is inherited of them
apart        work in a process of its own, so that what it loads is gone with it: calibration, migration
cells        the memory that the workers share: the counters and the state of each
cpus         how many CPUs there are to use, by affinity and quota
niceness     threads that give way to the event loops
============ ==============================================================================================
"""
