"""What is answered without a prediction.

========= ===========================================================================================
answers   emotions, models, health: what the worker knows itself
questions what clients ask the database: each question is answered once, unless its client has gone
lookups   whose predictions `history` and `stats` tell of, and the replies; the queries are in `store`
========= ===========================================================================================
"""
