"""`python -m echo`: the command line is `reproduction.cli`, the method's only door to the apparatus."""

from reproduction.cli import main

if __name__ == "__main__":
    main()
