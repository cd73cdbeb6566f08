package main

func Example() {
	main()
	// Output:
	// 5 -> 5 <nil>
	// -2 -> 3 <nil>
	// -4 ->  rejected (below_zero): the counter is 3, it cannot change by -4
	// value 3 <nil>
}
