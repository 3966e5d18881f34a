"""`python -m loader` is the command line."""

from loader.cli.app import main

if __name__ == "__main__":
    main()
