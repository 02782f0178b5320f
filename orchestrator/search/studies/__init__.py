"""A study and the processes that share it.

That is: storage, leases, the queue, and what interrupted runs left.
"""
