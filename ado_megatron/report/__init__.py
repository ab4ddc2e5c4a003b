"""`ado-megatron report RUN`: a run's metrics.jsonl comes in; a table, a picture and one HTML page go out.

    run = read_run("runs/first")            # data.py
    print(text_table(columns(run)))         # table.py
    save_page(run, None, Path("page.html")) # html.py, from templates/

    command.py  the command line
    data.py     metrics.jsonl as arrays, checked
    table.py    the words and numbers, and what two runs can be said to differ in
    figures.py  the pictures
    html.py     the page
"""
