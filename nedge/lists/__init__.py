"""Lists of hosts, domains and fingerprints: from files and URLs to memory that all workers share.

    parse.py     text -> entries
    fetch.py     URL -> text, if it is new
    cache.py     what is on disk: downloads, and lists packed for matching
    refresh.py   from sources to packed lists; what keeps the last good one if something is wrong
    loading.py   packed lists, or their sources -> the sets that the core matches with
    schedule.py  when to do it, in a process of its own

A list is one key of the configuration's [lists], whatever number of sources it has.
"""
