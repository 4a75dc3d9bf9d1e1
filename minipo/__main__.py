from minipo.cli import main

main()
