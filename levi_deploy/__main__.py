"""``python -m levi_deploy``: the ``levi`` command."""

from levi_deploy.cli import main

if __name__ == "__main__":
    main()
