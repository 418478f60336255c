"""`python -m dermkit.cli`, as every rank of a training is started."""

from dermkit.cli.app import main

if __name__ == "__main__":
    main()
