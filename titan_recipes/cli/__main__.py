"""`python -m titan_recipes.cli` is the program `titan-recipes`."""

from titan_recipes.cli import main

if __name__ == "__main__":
    main(prog_name="titan-recipes")
