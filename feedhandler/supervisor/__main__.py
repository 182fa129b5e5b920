from feedhandler.supervisor.daemon import main

main()
