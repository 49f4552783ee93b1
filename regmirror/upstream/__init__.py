"""The outside world, one client per upstream: authentication, redirects, failures in our words.

``client`` is what the rest of the program calls. ``caller`` executes the steps of ``auth`` and
follows ``redirects`` over a ``transport``; ``challenges``, ``tokens``, ``trust``, ``credentials``
and ``docker_config`` hold what authentication needs to know; ``failures`` says what went wrong.
"""
