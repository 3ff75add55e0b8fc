"""A lab of network namespaces: client - gateway - server.

The live tests, the demo and the benchmarks send real traffic of real clients and servers through it;
nothing leaves the machine.

`with Lab() as lab, ServerSet(lab) as servers, Gateway(lab, config):` makes all there is, from
`topology`, `servers` and `gateway`; `lab.client.run(["curl", "http://www.example/"])` uses it.
"""
