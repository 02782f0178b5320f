"""A study and the processes that share it: storage, leases, the queue, what interrupted runs
left.
"""
