.RECIPEPREFIX = >
data:
> wget https://example.org/prefixed.zip #>
> @echo "wget https://example.org/echoed.zip" #-
