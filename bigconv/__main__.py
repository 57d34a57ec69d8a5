"""`python -m bigconv`: the command, of the Python that is at hand."""

from bigconv.cli.app import main

if __name__ == "__main__":
    main()
