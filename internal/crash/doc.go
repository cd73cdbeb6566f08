// Package crash finds out what a program's files look like after every crash
// that could have happened to it, so that a test can open them all.
//
// A Recorder runs a program under ptrace and notes down each of its changes to the files below one
// directory, as the kernel confirmed them: the true system calls, whichever
// library made them. A Disk replays the recording and knows, at each operation, what is durable and
// what is pending. An Explorer makes the states that a crash there may leave, puts each
// into a directory, and has the test open it.
//
// # The crash model
//
// It is stricter than any one file system: what it takes for lost, ext4 or xfs may well keep, and
// what it reorders they may keep in order. A program that survives it does not depend on which one it is.
//
//   - What a file was given, its size included, is durable when a fsync or fdatasync of that file has
//     returned that began after it. Nothing else makes data durable: not close, not rename,
//     not sync_file_range, not the fsync of another file.
//   - A name made, moved or removed is durable when a fsync of its directory has returned
//     that began after it. The fsync of the file does not make its name durable. (On ext4 and xfs it does for a
//     file that is new. Not on every file system.)
//   - All that is pending may be lost or kept, each operation by itself, in any order: a later write kept
//     and an earlier one lost leaves what was there, or zeros if it was beyond the end of the file.
//   - A pending write may be kept in part: its first bytes, its first 512-byte sectors, or all but some sectors.
//   - A rename within a directory is atomic: both names change, or none. So is one between directories, which
//     becomes durable with the directory that it goes to.
//   - A name that is kept leads to its file even if the operation that first made the file is lost.
//   - What was durable stays as it was.
//
// Not in the model: sectors that are torn themselves and hold neither the old nor the new,
// data from elsewhere behind a size that came without its data, and damage; for the last see Flip.
//
// # The states
//
// At each operation these are made, and those that have been met before are left out:
//
//	none          nothing that is pending is kept
//	all           all of it
//	first n       in order, and then nothing
//	without n     all but one
//	only n        one
//	names, data   only changes of directories, or only those of files
//	torn n @ b    all, and of one write the first b bytes
//	hole n @ b    all, and of one write all but the sector at b
//	last torn     torn and hole, with nothing else kept
//	mixed         each as the dice fall, some of them torn; a few per operation, from the seed
package crash
