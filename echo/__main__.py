"""`python -m echo`: the command line is `reproduction.cli`, the method's only door to the apparatus."""

try:
    from reproduction.cli import main
except KeyboardInterrupt:  # before there is a command that could say so
    raise SystemExit(130) from None

if __name__ == "__main__":
    main()
