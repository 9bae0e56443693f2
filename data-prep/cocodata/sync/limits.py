"""How many files this process may have open."""

import resource

from cocodata.errors import DatasetError

# Three pipes to each host's ssh, a password, and connections to a part of the hosts; and the rest.
_FILES_PER_HOST = 5
_OTHER_FILES = 200


def raise_open_files(hosts: int) -> None:
    """Allow this process to open as many files as the system lets it, which hosts need.

    Many systems begin with 1,024, for programs that cannot use more.

    Raises:
        DatasetError: the system allows fewer than that number of hosts needs.
    """
    needed = _FILES_PER_HOST * hosts + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DatasetError(
            f"{hosts} hosts need {needed} open files, and this machine allows {hard}: raise the "
            f"limit (`ulimit -Hn {needed}` as root, or nofile in /etc/security/limits.conf)"
        )
