from feedhandler.cli import main

main(prog_name="feedhandler")
