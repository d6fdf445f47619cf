# SPDX-License-Identifier: Apache-2.0
"""DDS domains for tests: workers of one run draw from ranges of their own, and what another run uses is passed over."""

import itertools
import os

from rays_as_pixels_ros.demo_processes import ports_are_free

# Ports of domains above 101 run into Linux' ephemeral ports. Runs side by side start at different places.
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_own = range(1 + _worker, 102, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
_domains = itertools.cycle(_own)
for _ in range(os.getpid() * 7 % len(_own)):
    next(_domains)


def next_domain() -> int:
    """Return a domain that nobody uses now."""
    return next(domain for domain in itertools.islice(_domains, len(_own)) if ports_are_free(domain))
