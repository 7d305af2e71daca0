"""A scripted stand-in for Ollama that misbehaves on request, so that a client of Ollama can be tested.

    wf mock                                   # listens on 127.0.0.1:11434, prints what each model does
    curl -N 127.0.0.1:11434/api/generate -d '{"model":"mock:cut","prompt":"hi"}'

A client chooses a behaviour by the name of the model, so it needs no configuration and no test hook of its own. Nothing
here is a language model, and it says so: version `0.0.0-mock`, family `mock`, `details.synthetic: true`.

    requests ─▶ catalogue, behaviours, speech ─▶ player ─▶ connection        server: routes, what is loaded, counters
    bytes to Ask          Script of steps          bytes     HTTP (h11)       All up to the script is pure.
"""
