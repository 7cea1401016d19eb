"""Building trajectories: from raw rows of terminal runs to one complete, ordered, typed record each.

Belongs here: what Letta's rows mean. Does not belong here: reading or writing anything; a function takes data and
gives data back.
"""
